"""The vocabulary and the wire that every part of AMP4EC speaks."""
