"""What the Linux kernel can take away from one process, in the order it is taken. Standard library only.

    limits      RLIMIT_*: processor time, memory, open files, file size (0), core (0)
    privileges  no_new_privs, every capability dropped
    files       Landlock: nothing but the named directories can be opened, nothing can be written, signals and traces
                reach nobody outside
    calls       seccomp, by a list of what is allowed: no new process, no program started, no socket, no signal, no mount

None of it can be undone by the process or its threads.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable

_LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SIGKILL = 9

# ---- Landlock (kernel documentation, userspace-api/landlock) --------------------------------------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 5: 16}
"""Number of file rights that an ABI knows; all of them are taken away."""


def landlock_abi() -> int:
    """Version of Landlock in this kernel; 0: none."""
    return max(0, int(_LIBC.syscall(CREATE_RULESET, None, 0, 1)))


def landlock_rules(readable: Iterable[str]) -> int:
    """A descriptor of the rules: the named directories and files can be read, /dev/null also written, nothing else.

    Raises:
        OSError: this kernel has no Landlock.
    """
    abi = landlock_abi()
    if not abi:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    rights = (1 << max(count for known, count in RIGHTS_BY_ABI.items() if known <= abi)) - 1
    attributes = struct.pack("QQQ", rights, 0b11, 0b11)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    rules = _called(_LIBC.syscall(CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    for path in (*readable, "/dev/null", "/dev/urandom"):
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # a library directory that this system does not have
        allowed = READ_FILE | (READ_DIR if os.path.isdir(path) else 0) | (WRITE_FILE if path == "/dev/null" else 0)
        rule = struct.pack("=Qi", allowed, place)
        _called(_LIBC.syscall(ADD_RULE, rules, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(place)
    return rules


# ---- seccomp --------------------------------------------------------------------------------------------------------

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# name: (number on x86_64, number on aarch64); None where the architecture does not have the call.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # descriptors that are open, and files that Landlock lets it open
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "open": (2, None), "openat": (257, 56), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "eventfd2": (290, 19), "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233),
    # signals to itself that are handlers and masks only, threads, waiting
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "restart_syscall": (219, 128), "getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None),
    "exit": (60, 93), "exit_group": (231, 94),
    # who and when
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165),
    "getrlimit": (97, 163), "times": (100, 153), "time": (201, None), "gettimeofday": (96, 169),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "getrandom": (318, 278),
}  # fmt: skip
# name: (numbers, argument looked at, values of it that are allowed)
CONDITIONAL: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "clone": ((56, 220), 0, (0x3D0F00, 0x7D0F00)),  # a thread, as glibc and musl make it; never a process
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # not F_SETOWN, which sends signals
    "ioctl": ((16, 29), 1, (0x5401, 0x5451, 0x5450, 0x541B, 0x5421)),  # TCGETS, FIOCLEX, FIONCLEX, FIONREAD, FIONBIO
    "prlimit64": ((302, 261), 0, (0,)),  # its own limits only
}
CLONE3 = 435
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
KILL, ALLOW, REFUSE = 0x80000000, 0x7FFF0000, 0x00050000


def seccomp_program() -> bytes:
    """The filter for this machine.

    Raises:
        OSError: no list of calls for this architecture.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}")
    token, column = ARCHITECTURES[machine]
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, token), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for pair, argument, values in CONDITIONAL.values():
        block = [(LOAD, 0, 0, 16 + 8 * argument)]
        for value in values:
            block += [(EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
        block.append((RETURN, 0, 0, REFUSE | errno.EPERM))
        steps += [(EQUAL, 0, len(block), pair[column]), *block]
    # ENOSYS makes the C library fall back to clone, whose flags can be seen.
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    allowed = [numbers[column] for numbers in ALLOWED.values() if numbers[column] is not None]
    steps += [(EQUAL, len(allowed) - index, 0, number or 0) for index, number in enumerate(allowed)]  # to the last step
    steps += [(RETURN, 0, 0, REFUSE | errno.EPERM), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


# ---- the process itself ---------------------------------------------------------------------------------------------


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` ends; end now if that has happened already."""
    _called(_LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


def hide_memory() -> None:
    """No other process of this user may trace this one or look into it through /proc; children inherit it."""
    _called(_LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl DUMPABLE")


def own_namespaces() -> list[str]:
    """Move into a network, an IPC and a user namespace of its own where that is permitted; returns which."""
    flags = {"user": 0x10000000, "network": 0x40000000, "ipc": 0x08000000}
    return list(flags) if _LIBC.unshare(sum(flags.values())) == 0 else []


def limit(cpu_s: int, memory_bytes: int, processes: int | None) -> None:
    """Resource limits; `processes` counts threads too, and is exact only in a user namespace of its own."""
    hard = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if processes is not None:
        hard[resource.RLIMIT_NPROC] = processes
    for which, value in hard.items():
        resource.setrlimit(which, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


def drop_privileges() -> None:
    """No capability left, and none to be had by starting a program."""
    _called(_LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _called(_LIBC.capset(header, nothing), "capset")


def enter(rules: int | None, program: bytes | None) -> None:
    """Landlock, then seccomp. `None` leaves one out."""
    if rules is not None:
        _called(_LIBC.syscall(RESTRICT_SELF, rules, 0), "landlock_restrict_self")
        os.close(rules)
    if program is not None:
        buffer = ctypes.create_string_buffer(program, len(program))
        pointer = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
        _called(_LIBC.prctl(PR_SET_SECCOMP, 2, pointer, 0, 0), "seccomp")


def _called(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
