"""What `moments` asks for happens here, inside of the process that it is meant for.

Python imports a module of this name before it runs anything, where PYTHONPATH has its folder. It
does nothing but in the scripts of the workflow's jobs, and there what the variable FAULTS says.
No code of the workflow knows of it.
"""

import atexit
import fcntl
import json
import os
import re
import resource
import signal
import sys
import time

OPEN_FILES = []  # locks last as long as the process


def wait_for_lock(path):
    """Returns when whoever has locked the file lets go of it; the lock is shared and kept."""
    file = open(path)  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_SH)
    OPEN_FILES.append(file)


class Killer:
    """Ends this process, or the run that it belongs to, when a file is written.

    Moments: "write" (half of the file is there, under its temporary name), "rename" (just before
    it gets its name), "renamed" (just after), "remove" (before it is removed), "start" and "end"
    (of the script), "limit" (inside of the write that goes beyond so many bytes).
    """

    def __init__(self, fault):
        self.fault, self.seen = fault, 0
        self.file = re.compile(fault["file"])
        self.replace, self.unlink = os.replace, os.unlink

    def install(self):
        moment = self.fault["moment"]
        # A shell starts what runs in its background with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if moment == "start":
            self.strike()
        elif moment == "end":
            atexit.register(self.strike)
        elif moment == "limit":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault["bytes"], hard))
        else:
            os.replace = os.rename = self.on_replace
            os.unlink = os.remove = self.on_unlink

    def is_now(self, path, *moments):
        """Whether this is the n-th time that the file comes to the moment."""
        if self.fault["moment"] not in moments or not self.file.search(os.fspath(path)):
            return False
        self.seen += 1
        return self.seen == self.fault["nth"]

    def on_replace(self, source, target, **options):
        hit = self.is_now(target, "write", "rename", "renamed")
        if hit and self.fault["moment"] != "renamed":
            self.strike(source)
        self.replace(source, target, **options)
        if hit and self.fault["moment"] == "renamed":
            self.strike()

    def on_unlink(self, path, **options):
        if self.is_now(path, "remove"):
            self.strike()
        self.unlink(path, **options)

    def strike(self, temporary=None):
        fault = self.fault
        try:
            self.unlink(fault["token"])
        except FileNotFoundError:
            return  # another process of this run was first
        number = signal.Signals[fault["signal"]]
        if fault["whom"] == "snakemake":
            os.kill(os.getpgrp(), number)  # it leads the group, as a command of a shell does
            if fault["hold"]:
                wait_for_lock(fault["hold"])
            return
        if fault["moment"] == "write":
            os.truncate(temporary, os.path.getsize(temporary) // 2)
        if fault["whom"] == "group":
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)
        while True:
            signal.pause()


def forget_syncs():
    """What is written reaches the disk when the kernel likes."""

    def nothing(_descriptor=None):
        pass

    os.fsync = os.fdatasync = os.sync = nothing


def note_reads(folder):
    """Keeps the paths of files that are opened for reading, one a line, in a file of its own."""
    notes = open(os.path.join(folder, str(os.getpid())), "w")  # noqa: SIM115
    notes.write(sys.orig_argv[-1] + "\n")

    def see(event, arguments):
        if event != "open" or not isinstance(arguments[0], str):
            return
        path, _, flags = arguments
        if flags & os.O_ACCMODE == os.O_RDONLY and not path.endswith((".py", ".pyc", ".so")):
            notes.write(os.path.abspath(path) + "\n")
            notes.flush()

    sys.addaudithook(see)


def hurry_clocks():
    """Five hours pass in a second: what is done by time is done often."""
    for name in ("monotonic", "perf_counter"):
        clock = getattr(time, name)
        setattr(time, name, lambda clock=clock: 20_000 * clock())


def main():
    wanted = json.loads(os.environ.get("FAULTS", "{}"))
    script = next((word for word in sys.orig_argv[1:] if word.endswith(".py")), "")
    if not wanted or not re.search(wanted["script"], os.path.basename(script)):
        return
    if wanted.get("alive"):
        wait_for_lock(wanted["alive"])
    if wanted.get("unsynced"):
        forget_syncs()
    if wanted.get("fast_clock"):
        hurry_clocks()
    if wanted.get("reads"):
        note_reads(wanted["reads"])
    if wanted.get("kill"):
        Killer(wanted["kill"]).install()


main()
