"""Where the bytes are: a private tmpfs, its inodes and names, and the files that outlive a daemon."""
