"""Tests of the theory of hidden states by depth (path geometry, neural collapse, updates) against null models."""
