"""Models: import, cut, slice. Only the importer's side imports torch, and nothing here does at once."""
