"""What a test's tenant runs: executes Python lines from standard input, each in its own cgroup, and answers with JSON.

A request is a JSON string of statements; what they leave in `result` is the answer. `{"error": errno}` for an OSError.
Started with `exec` after its shell has joined the cgroup, so nothing but this interpreter is charged to the tenant.
"""

import fcntl
import json
import mmap
import os
import socket
import stat
import sys
import threading


def main() -> None:
    names: dict[str, object] = {
        "os": os,
        "mmap": mmap,
        "fcntl": fcntl,
        "socket": socket,
        "stat": stat,
        "threading": threading,
    }
    for line in sys.stdin:
        names["result"] = None
        try:
            exec(json.loads(line), names)
            answer = {"result": names["result"]}
        except OSError as error:
            answer = {"error": error.errno}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
