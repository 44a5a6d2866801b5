"""A keeper that was started by a version before the folders starts its daemons with `-m sharedfs.spare`.

To be removed with the first release after 0.1.
"""

from sharedfs.supervisor.prefork import main

if __name__ == "__main__":
    main()
