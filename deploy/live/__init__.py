"""Inputs that come by themselves, for `amp4ec infer`: a folder's new files, a camera's frames."""
