#!/usr/bin/env python3
"""Python, in a fork of the server that the tests share (see forks.py): it starts in no time. `forked.py -c CODE ...` or `forked.py FILE ...`

Its streams are those of this program, which waits for its end.
"""

import json
import os
import socket
import sys

first, *rest = [word for word in sys.argv[1:] if word != '-u']
code = (
    rest.pop(0)
    if first == '-c'
    else f'import runpy; runpy.run_path({first!r}, run_name="__main__")'
)
line = socket.socket(socket.AF_UNIX)
line.connect(os.environ['BDENSE_FORKS'])
jobs, replies = line.makefile('w'), line.makefile()
replies.readline()
streams = [f'/proc/{os.getpid()}/fd/{i}' for i in range(3)]
job = dict(program='python', arguments=['-c', code, *rest], folder=os.getcwd())
print(json.dumps(job | dict(env=dict(os.environ), streams=streams)), file=jobs, flush=True)
sys.exit(json.loads(replies.readline())['code'])
