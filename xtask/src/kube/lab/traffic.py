"""Servers in the namespace of a node, and clients of its ports."""

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time

from control import inside, run, wait_for

LIBC = ctypes.CDLL(None, use_errno=True)


def in_netns(name, make):
    """Calls a function in a thread that has entered a network namespace."""
    result = []

    def work():
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        if LIBC.setns(fd, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)
        result.append(make())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return result[0]


def serve(netns, port):
    """Listens on a port of TCP and UDP. The line `who` is answered with the port and the
    address of the client; anything else comes back as it is."""
    tcp = in_netns(netns, lambda: socket.create_server(("0.0.0.0", port), backlog=1024))
    udp = in_netns(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind(("0.0.0.0", port))

    def answer(conn, client):
        with conn:
            try:
                while data := conn.recv(4096):
                    conn.sendall(f"{port} {client}\n".encode() if data == b"who\n" else data)
            except OSError:
                pass

    def accept():
        while True:
            try:
                conn, client = tcp.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(conn, client[0]), daemon=True).start()

    def echo():
        while True:
            try:
                data, client = udp.recvfrom(4096)
                udp.sendto(data, client)
            except OSError:
                return

    for work in [accept, echo]:
        threading.Thread(target=work, daemon=True).start()

    def close():
        # Wakes the thread that waits for a connection.
        tcp.shutdown(socket.SHUT_RDWR)
        tcp.close()
        udp.close()
    return close


def who(host, port, timeout=2.0):
    """The words of the server behind a port, or the name of the error."""
    try:
        with socket.create_connection((host, port), timeout=timeout) as sock:
            sock.sendall(b"who\n")
            return sock.recv(64).decode().strip() or "closed"
    except OSError as error:
        return type(error).__name__


class Load:
    """Clients of a port: new connections, lasting ones, and datagrams."""

    def __init__(self, host, port, lasting=10):
        self.host, self.port = host, port
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.new = self.exchanges = self.sent = self.received = 0
        self.failed = []
        self.last, self.gap = time.monotonic(), 0.0
        works = [self.connect, *[self.stay] * lasting, self.datagrams]
        self.threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self.threads:
            thread.start()

    def connect(self):
        while not self.over.is_set():
            answer = who(self.host, self.port, 10)
            now = time.monotonic()
            with self.lock:
                if " " in answer:
                    self.new += 1
                    self.gap = max(self.gap, now - self.last)
                    self.last = now
                else:
                    self.failed.append(answer)
            time.sleep(0.004)

    def stay(self):
        try:
            with socket.create_connection((self.host, self.port), timeout=20) as sock:
                while not self.over.is_set():
                    sock.sendall(b"ping\n")
                    if sock.recv(64) != b"ping\n":
                        raise OSError("closed")
                    with self.lock:
                        self.exchanges += 1
                    time.sleep(0.04)
        except OSError as error:
            with self.lock:
                self.failed.append(f"lasting: {error}")

    def datagrams(self):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
        sock.connect((self.host, self.port))
        sock.setblocking(False)
        due, end = time.monotonic(), None
        while end is None or (self.received < self.sent and time.monotonic() < end):
            if end is None and self.over.is_set():
                # What comes two seconds late is lost.
                end = time.monotonic() + 2
            try:
                if end is None and time.monotonic() >= due:
                    sock.send(struct.pack("!Q", self.sent))
                    self.sent += 1
                    due += 0.005
                if select.select([sock], [], [], 0.002)[0]:
                    sock.recv(64)
                    self.received += 1
            except OSError as error:
                self.failed.append(f"datagram: {error}")
                time.sleep(0.01)

    def end(self):
        """Ends, and returns a sentence; a failure is an error."""
        self.over.set()
        for thread in self.threads:
            thread.join(30)
        lost = self.sent - self.received
        text = (f"{self.new} new connections, {self.exchanges} exchanges on lasting ones, {self.sent} datagrams: "
                f"{len(self.failed)} failed, {lost} lost, longest gap {self.gap * 1000:.0f} ms")
        assert not self.failed and lost == 0, f"{text}: {self.failed[:3]}"
        assert self.new > 20 and self.exchanges > 20, text
        return text


class Flow:
    """One flow of datagrams, one in 100 ms, to a server that sends them back."""

    def __init__(self, host, port):
        self.over = threading.Event()
        self.answers = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.connect((host, port))
        self.sock.setblocking(False)
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        due = time.monotonic()
        while not self.over.is_set():
            try:
                if time.monotonic() >= due:
                    due += 0.1
                    self.sock.send(struct.pack("!d", time.monotonic()))
                if select.select([self.sock], [], [], 0.01)[0]:
                    sent, = struct.unpack("!d", self.sock.recv(64))
                    self.answers.append((sent, time.monotonic()))
            except OSError:
                # Nobody listens for now.
                time.sleep(0.01)

    def after(self, moment):
        """The milliseconds from a moment to the first answer to a datagram that was sent since."""
        return next(((came - moment) * 1000 for sent, came in list(self.answers) if sent >= moment), None)

    def gap(self):
        """The longest time in seconds without an answer."""
        times = [came for _, came in list(self.answers)] + [time.monotonic()]
        return max(later - earlier for earlier, later in zip(times, times[1:]))

    def end(self):
        self.over.set()
        self.thread.join()
        self.sock.close()


class Stream:
    """iperf3 by port 5200 of a node, to a server on its port 5201, at a modest rate."""

    def __init__(self, node):
        self.name = node.name
        self.server = subprocess.Popen(inside(node.name, "iperf3", "--server", "--port=5201"),
                                       stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        wait_for("iperf3", lambda: run(*inside(node.name, "ss", "-Htln", "sport = :5201")), 30, 0.1)
        self.client = subprocess.Popen(
            ["iperf3", f"--client={node.addr}", "--port=5200", "--time=900", "--bitrate=20M", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def end(self):
        """Ends, and returns a sentence; an interrupted stream or a silent second is an error."""
        self.client.send_signal(signal.SIGINT)
        found = json.loads(self.client.communicate(timeout=60)[0])
        self.server.kill()
        self.server.wait()
        error = found.get("error", "")
        whole = [one["sum"] for one in found["intervals"] if one["sum"]["seconds"] > 0.5]
        rates = [one["bits_per_second"] / 1e6 for one in whole]
        text = f"iperf3 to {self.name}: {len(rates)} s, {min(rates):.0f} to {max(rates):.0f} Mbit/s"
        assert "interrupt - the client has terminated" in error and min(rates) > 0, f"{text}: {error}"
        return text
