"""Traffic of a client: connections that stay, new connections, and UDP packets.

Runs until SIGTERM, then prints what became of it in one line."""

import signal
import socket
import struct
import threading
import time

HOST = "10.77.0.1"
stop = threading.Event()
lock = threading.Lock()
count = {}


def add(name, number=1):
    with lock:
        count[name] = count.get(name, 0) + number


def exchange(sock):
    sock.sendall(b"ping\n")
    answer = b""
    while not answer.endswith(b"\n"):
        part = sock.recv(64)
        if not part:
            raise OSError("closed")
        answer += part


def connect():
    sock = socket.create_connection((HOST, 80), timeout=120)
    sock.settimeout(120)
    return sock


def lasting():
    """One connection from the beginning to the end."""
    try:
        with connect() as sock:
            while not stop.is_set():
                exchange(sock)
                add("exchanges")
                time.sleep(0.02)
        add("lasting")
    except OSError as error:
        add(f"broken ({error})")


def new():
    """One connection after the other."""
    while not stop.is_set():
        try:
            with connect() as sock:
                exchange(sock)
            add("new")
        except OSError as error:
            add(f"failed ({error})")
        time.sleep(0.03)


def packets():
    """UDP packets, each of which the server sends back."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # SO_RCVBUFFORCE: a host that stands still for seconds must not lose answers.
    sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)
    sock.connect((HOST, 53))
    sock.settimeout(0.2)
    missing = set()
    sender_is_done = threading.Event()

    def send():
        number = 0
        while not stop.is_set():
            missing.add(number)
            try:
                sock.send(struct.pack("!I", number))
            except OSError as error:
                add(f"udp ({error})")
            number += 1
            time.sleep(0.01)
        add("packets", number)
        sender_is_done.set()

    threading.Thread(target=send).start()
    end = None
    while end is None or (missing and time.monotonic() < end):
        if end is None and sender_is_done.is_set():
            end = time.monotonic() + 60
        try:
            missing.discard(struct.unpack("!I", sock.recv(64))[0])
        except TimeoutError:
            pass
        except OSError as error:
            add(f"udp ({error})")
    if missing:
        add("lost", len(missing))


signal.signal(signal.SIGTERM, lambda *_: stop.set())
threads = [threading.Thread(target=work) for work in [lasting] * 5 + [new] * 2 + [packets]]
for thread in threads:
    thread.start()
print("begun", flush=True)
for thread in threads:
    thread.join()
print(", ".join(f"{number} {name}" for name, number in sorted(count.items())))
