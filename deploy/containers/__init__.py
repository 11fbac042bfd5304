"""A cluster in containers: images, limits from a profile, a private network, and nothing left behind."""
