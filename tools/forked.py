#!/usr/bin/env python3
"""Python, in a fork of the server that the tests share (see forks.py): it starts in no time. `forked.py -c CODE ...` or `forked.py FILE ...`

Its streams, and the pipes that it inherits, are those of this program, which waits for its end.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import sys

words = sys.argv[1:]
while words[0].startswith('-') and words[0] != '-c':  # the interpreter's own options
    del words[: 1 + (words[0] == '-X')]
first, *rest = words
code = (
    rest.pop(0)
    if first == '-c'
    else f'import runpy; runpy.run_path({first!r}, run_name="__main__")'
)
pipes = {}  # number -> how it is opened
for n in map(int, os.listdir('/proc/self/fd')):
    with contextlib.suppress(OSError):
        if n > 2 and os.get_inheritable(n) and stat.S_ISFIFO(os.fstat(n).st_mode):
            pipes[n] = fcntl.fcntl(n, fcntl.F_GETFL) & os.O_ACCMODE
if pipes:
    opened = f'import os\nfor n, how in {pipes}.items(): os.dup2(os.open(f"/proc/{os.getpid()}/fd/{{n}}", how), n)\n'
    code = opened + code
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the program ends with its pipes
line = socket.socket(socket.AF_UNIX)
line.connect(os.environ['BDENSE_FORKS'])
jobs, replies = line.makefile('w'), line.makefile()
replies.readline()
streams = [f'/proc/{os.getpid()}/fd/{i}' for i in range(3)]
job = dict(program='python', arguments=['-c', code, *rest], folder=os.getcwd())
print(json.dumps(job | dict(env=dict(os.environ), streams=streams)), file=jobs, flush=True)
sys.exit(json.loads(replies.readline())['code'])
