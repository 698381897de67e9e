"""What the fleet asks of Nomad, answered on one machine: allocations are processes of it, and every one has a place at once.

It is no Nomad, which is under no open-source licence. What it answers is what the adapter's own double answers
(crates/cluster/src/nomad/tests/double.rs); what it adds is that the program of a job runs.
"""

import json
import os
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class Nomad:
    """One agent, with its jobs."""

    def __init__(self):
        self.changed = threading.Condition()
        self.index = 1
        self.parents, self.jobs, self.allocations, self.processes = {}, {}, {}, {}
        #: Dispatches that were refused, while it takes none.
        self.takes, self.refused = True, 0
        nomad = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                url = urlsplit(self.path)
                path = [unquote(part) for part in url.path.strip("/").split("/")]
                status, told = nomad.ask(self.command, path, parse_qs(url.query), body)
                text = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("X-Nomad-Index", str(nomad.index))
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PUT = do_POST = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def ask(self, method, path, query, body):
        with self.changed:
            match (method, path):
                case ("GET", ["v1", "jobs"]):
                    self.wait(query)
                    return 200, list(self.jobs.values())
                case ("GET", ["v1", "allocations"]):
                    self.wait(query)
                    return 200, list(self.allocations.values())
                case ("GET", ["v1", "job", name]) if name in self.jobs:
                    return 200, self.jobs[name]
                case ("PUT" | "POST", ["v1", "jobs"]):
                    self.parents[body["Job"]["ID"]] = body["Job"]
                    return 200, {}
                case ("PUT" | "POST", ["v1", "job", name, "dispatch"]) if name in self.parents:
                    if not self.takes:
                        self.refused += 1
                        return 500, "nothing is dispatched at present"
                    return 200, {"DispatchedJobID": self.dispatch(name, body["Meta"], query["idempotency_token"][0])}
                case ("DELETE", ["v1", "job", name]) if name in self.jobs:
                    self.stop(name)
                    return 200, {}
        return 404, "job not found"

    def wait(self, query):
        if "index" in query:
            seconds = int(query["wait"][0].removesuffix("ms")) / 1000
            self.changed.wait_for(lambda: self.index > int(query["index"][0]), seconds)

    def tell(self):
        self.index += 1
        self.changed.notify_all()

    def dispatch(self, parent, meta, token):
        for name, job in self.jobs.items():
            if job["Meta"]["atoll_token"] == token:
                return name
        name = f"{parent}/dispatch-{len(self.jobs)}"
        allocation = f"allocation-{len(self.jobs)}"
        task = self.parents[parent]["TaskGroups"][0]["Tasks"][0]["Config"]
        known = {"NOMAD_JOB_ID": name, "NOMAD_ALLOC_ID": allocation} | {f"NOMAD_META_{key}": value for key, value in meta.items()}
        arguments = []
        for argument in task["args"]:
            for key, value in known.items():
                argument = argument.replace(f"${{{key}}}", value)
            arguments.append(argument)
        process = subprocess.Popen([task["command"], *arguments], env=os.environ | known, stderr=subprocess.PIPE, text=True)
        self.jobs[name] = {"ID": name, "Status": "running", "Stop": False, "Meta": meta}
        self.allocations[allocation] = {
            "ID": allocation, "JobID": name, "NodeID": "one", "NodeName": "one",
            "DesiredStatus": "run", "ClientStatus": "running", "CreateIndex": self.index,
        }
        self.processes[name] = process
        self.tell()
        threading.Thread(target=self.reap, args=(name, allocation, process), daemon=True).start()
        return name

    def reap(self, name, allocation, process):
        code = process.wait()
        with self.changed:
            self.allocations[allocation]["ClientStatus"] = "complete" if code == 0 else "failed"
            self.jobs[name]["Status"] = "dead"
            self.tell()

    def stop(self, name):
        """As `nomad job stop` does it."""
        with self.changed:
            self.jobs[name]["Stop"] = True
            for allocation in self.allocations.values():
                if allocation["JobID"] == name:
                    allocation["DesiredStatus"] = "stop"
            self.processes[name].send_signal(signal.SIGTERM)
            self.tell()

    def running(self):
        return {name for name, process in self.processes.items() if process.poll() is None}

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.server.shutdown()
        self.server.server_close()
