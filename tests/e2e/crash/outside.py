"""A host on the internet, as far as any policy can tell: in a network namespace, with an address of documentation (RFC 5737)."""

import contextlib
import subprocess
import uuid

HOST, NEIGHBOUR = "198.51.100.77", "198.51.100.1"
# Says a line, and goes on saying lines as long as it is listened to.
TALKER = """
import socketserver, time
class Talk(socketserver.StreamRequestHandler):
    def handle(self):
        while True:
            self.wfile.write(b"on and on\\n")
            time.sleep(0.05)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
print("listens", flush=True) if (server := Server(("", 80), Talk)) else None
server.serve_forever()
"""


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def outside():
    """A host that talks on port 80; its address."""
    tag = uuid.uuid4().hex[:6]
    space, link, peer = f"crash-{tag}", f"cr{tag}h", f"cr{tag}g"
    run("ip", "netns", "add", space)
    try:
        run("ip", "link", "add", link, "type", "veth", "peer", "name", peer, "netns", space)
        run("ip", "addr", "add", f"{NEIGHBOUR}/24", "dev", link)
        run("ip", "link", "set", link, "up")
        run("ip", "-n", space, "addr", "add", f"{HOST}/24", "dev", peer)
        run("ip", "-n", space, "link", "set", peer, "up")
        run("ip", "-n", space, "route", "add", "default", "via", NEIGHBOUR)
        server = subprocess.Popen(["ip", "netns", "exec", space, "python3", "-c", TALKER], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout.readline() == "listens\n"
            yield HOST
        finally:
            server.kill()
            server.wait()
    finally:
        run("ip", "netns", "del", space)
