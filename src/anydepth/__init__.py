"""placeholder until the surface is written"""
