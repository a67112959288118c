"""Stopping early: when a sample has had enough blocks, and a forward that lets it go."""
