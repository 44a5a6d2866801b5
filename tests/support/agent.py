"""What a test's tenant runs: executes Python lines from standard input, each in its own cgroup, and answers with JSON.

A request is a JSON string of statements; what they leave in `result` is the answer. `{"error": errno}` for an OSError.
Started with `exec` after its shell has joined the cgroup, so nothing but this interpreter is charged to the tenant.
With the argument `--main-thread-ends` another thread does all that, and the main thread has ended (pthread_exit).
"""

import ctypes
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
        "ctypes": ctypes,
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
    if sys.argv[1:] == ["--main-thread-ends"]:
        threading.Thread(target=main).start()
        ctypes.CDLL(None).pthread_exit(None)
    main()
