"""What a keeper of any version starts its daemons with: `-m sharedfs.spare`. The name stays (`pool/schema.py`)."""

from sharedfs.supervisor.prefork import main

if __name__ == "__main__":
    main()
