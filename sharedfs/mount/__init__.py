"""What a person or mount(8) calls: mount, remount, umount, status."""
