"""Longer measurements, each a program that writes a JSON file or a picture."""
