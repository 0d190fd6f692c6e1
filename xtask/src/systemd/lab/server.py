"""The server behind the redirect: TCP port 8080 and UDP port 5353 send back what comes,
and HTTP requests get their answer."""

import socket
import threading


def answer(conn):
    try:
        while data := conn.recv(4096):
            if data.startswith(b"GET "):
                conn.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n8080\n")
                break
            conn.sendall(data)
    except OSError:
        pass
    conn.close()


def bound(kind, port):
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    return sock


def udp():
    sock = bound(socket.SOCK_DGRAM, 5353)
    # SO_RCVBUFFORCE
    sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)
    while True:
        data, peer = sock.recvfrom(64)
        sock.sendto(data, peer)


threading.Thread(target=udp, daemon=True).start()
server = bound(socket.SOCK_STREAM, 8080)
server.listen(512)
while True:
    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()
