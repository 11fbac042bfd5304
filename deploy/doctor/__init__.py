"""What `amp4ec doctor` looks at: this machine, the broker, and the cluster on it."""
