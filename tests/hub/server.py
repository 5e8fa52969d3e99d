"""A small Hugging Face hub on two loopback ports, of Python's standard library alone: the hub, and the second host that
it sends large files from. It serves FOLDER/repos/ORG/NAME/REVISION/..., reads FOLDER/server.json at each request, adds a
line to FOLDER/requests.log for each, and ends when its standard input does.

    python3 server.py FOLDER        prints "HUB_PORT SECOND_PORT"

server.json: {"page": entries in a page of a list, "tokens": {"ORG/NAME": token}, "xet": true to give Xet hashes,
"moved": {"ORG/OLD": "ORG/NEW"},
"faults": [{"path": regular expression, "method": "GET", "host": "hub" or "cdn", "times": how often,
"skip": requests to let pass first, ...}]}; a fault may say
  status, headers, body    answer this                       redirect      to this address ({hub}, {cdn} are filled in)
  cut: N                   end the connection after N bytes   stall: N      stop after N bytes and wait 30 s
  ignore_range             send it all with status 200        extra: N      send N bytes more, and announce them
  flip                     change the first byte              chunked       send no length
  slow: seconds            pause after each 16 KiB            set: headers to replace, null to leave out
"""
import hashlib
import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

root = sys.argv[1]
lock = threading.Lock()
hashes, used = {}, {}
ports = {}


def settings():
    try:
        with open(os.path.join(root, "server.json")) as file:
            return json.load(file)
    except OSError:
        return {}


def hashed(path):
    """Git's name and the SHA-256 of a file."""
    info = os.stat(path)
    key = (path, info.st_mtime_ns, info.st_size)
    if key not in hashes:
        with open(path, "rb") as file:
            data = file.read()
        hashes[key] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()
    return hashes[key]


class Repository:
    """One revision: its commit, and its files by path."""

    def __init__(self, repository, revision):
        self.exists, self.files = os.path.isdir(os.path.join(root, "repos", repository)), None
        base = os.path.join(root, "repos", repository)
        for name in sorted(os.listdir(base)) if self.exists else []:
            files, text = {}, ""
            for folder, _, names in os.walk(os.path.join(base, name)):
                for file in names:
                    path = os.path.join(folder, file)
                    files[os.path.relpath(path, os.path.join(base, name))] = path
            for path in sorted(files):
                text += path + hashed(files[path])[1]
            commit = hashlib.sha1(text.encode()).hexdigest()
            if revision in (name.replace("%2F", "/"), commit):
                self.files, self.commit = files, commit

    @staticmethod
    def large(path):
        return path.endswith((".safetensors", ".bin"))

    def entry(self, path, xet):
        oid, sha256 = hashed(self.files[path])
        size = os.path.getsize(self.files[path])
        entry = {"type": "file", "oid": oid, "size": size, "path": path}
        if self.large(path):
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
            entry["oid"] = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": len(pointer)}
            if xet:
                entry["xetHash"] = hashlib.sha256(b"xet" + sha256.encode()).hexdigest()
        return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.handle_request()

    def do_GET(self):
        self.handle_request()

    def fault(self):
        for number, fault in enumerate(settings().get("faults", [])):
            if not re.search(fault["path"], self.path) or fault.get("method", self.command) != self.command:
                continue
            if fault.get("host", self.server.name) != self.server.name:
                continue
            with lock:
                key = json.dumps(fault, sort_keys=True) + str(number)
                used[key] = used.get(key, 0) + 1
                turn = used[key] - fault.get("skip", 0)
            if 0 < turn <= fault.get("times", 1 << 30):
                return fault
        return {}

    def handle_request(self):
        authorization = self.headers.get("Authorization")
        entry = {"host": self.server.name, "method": self.command, "path": self.path, "authorization": authorization,
                 "range": self.headers.get("Range")}
        with lock, open(os.path.join(root, "requests.log"), "a") as file:
            file.write(json.dumps(entry) + "\n")
        fault = self.fault()
        if "status" in fault:
            return self.answer(fault["status"], fault.get("body", "").encode(), fault.get("headers", {}), fault)
        if "redirect" in fault:
            target = fault["redirect"].format(hub=f"http://127.0.0.1:{ports['hub']}", cdn=f"http://127.0.0.1:{ports['cdn']}")
            return self.answer(302, b"", {"Location": target}, fault)
        if self.server.name == "cdn":
            if authorization:  # as storage services do
                return self.answer(400, b"only one way of authorization is allowed", {}, fault)
            return self.send_blob(fault)
        for old, new in settings().get("moved", {}).items():
            if f"/{old}/" in self.path:
                return self.answer(307, b"", {"Location": self.path.replace(old, new)}, fault)
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self.api(found[1], found[2], unquote(found[3] or "main"), query, fault)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], unquote(found[2]), unquote(found[3]), fault)
        return self.answer(404, b"", {}, fault)

    def open_repository(self, name, revision, fault):
        repository = Repository(name, revision)
        token = settings().get("tokens", {}).get(name)
        given = self.headers.get("Authorization", "")
        if not repository.exists:
            self.answer(404 if given else 401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, fault)
        elif token and given != "Bearer " + token:
            self.answer(403 if given else 401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}, fault)
        elif repository.files is None:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, fault)
        else:
            return repository
        return None

    def api(self, name, kind, revision, query, fault):
        repository = self.open_repository(name, revision, fault)
        if not repository:
            return
        if kind != "tree":
            info = {"id": name, "modelId": name, "sha": repository.commit, "private": False, "tags": [], "downloads": 0,
                    "siblings": [{"rfilename": path} for path in sorted(repository.files)]}
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, fault)
        folders = sorted({os.path.dirname(path) for path in repository.files} - {""})
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders]
        entries += [repository.entry(path, settings().get("xet")) for path in sorted(repository.files)]
        page, first = settings().get("page", 1000), int(query.get("cursor", ["0"])[0])
        headers = {"Content-Type": "application/json"}
        if first + page < len(entries):
            url = f"http://127.0.0.1:{ports['hub']}/api/models/{name}/tree/{revision}?recursive=true&cursor={first + page}"
            headers["Link"] = f'<{url}>; rel="next"'
        return self.answer(200, json.dumps(entries[first:first + page]).encode(), headers, fault)

    def resolve(self, name, revision, path, fault):
        repository = self.open_repository(name, revision, fault)
        if not repository:
            return
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if path not in repository.files:
            return self.answer(404, b"", headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, fault)
        oid, sha256 = hashed(repository.files[path])
        if repository.large(path):
            size = os.path.getsize(repository.files[path])
            place = quote(os.path.relpath(repository.files[path], root))
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size), "ETag": f'"{sha256}"',
                        "Location": f"http://127.0.0.1:{ports['cdn']}/{place}?signature=x"}
            return self.answer(302, b"Found", headers, fault)
        with open(repository.files[path], "rb") as file:
            return self.answer(200, file.read(), headers | {"ETag": f'"{oid}"'}, fault)

    def send_blob(self, fault):
        path = os.path.normpath(os.path.join(root, unquote(urlsplit(self.path).path).lstrip("/")))
        if not path.startswith(os.path.join(root, "repos")) or not os.path.isfile(path):
            return self.answer(404, b"", {}, fault)
        with open(path, "rb") as file:
            return self.answer(200, file.read(), {"ETag": '"s3-etag"', "Accept-Ranges": "bytes"}, fault)

    def answer(self, status, body, headers, fault):
        total, wanted = len(body), re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if fault.get("flip") and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if wanted and status == 200 and not fault.get("ignore_range"):
            first = int(wanted[1])
            if first >= total:
                status, body, headers = 416, b"", headers | {"Content-Range": f"bytes */{total}"}
            else:
                status, body = 206, body[first:]
                headers = headers | {"Content-Range": f"bytes {first}-{total - 1}/{total}"}
        body += b"x" * fault.get("extra", 0)
        headers = {"Content-Length": str(len(body))} | headers | fault.get("set", {})
        if fault.get("chunked"):
            headers["Content-Length"] = None
            self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = fault.get("cut", fault.get("stall", len(body)))
        try:
            for first in range(0, min(stop, len(body)), 16384):
                self.wfile.write(body[first:min(first + 16384, stop)])
                self.wfile.flush()
                time.sleep(fault.get("slow", 0))
            if "stall" in fault:
                time.sleep(30)
        except OSError:
            self.close_connection = True
        if "cut" in fault:
            self.close_connection = True
            self.connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def handle_error(self, *_):  # clients that are killed
        pass


def serve(name):
    server = Server(("127.0.0.1", 0), Handler)
    server.name = name
    ports[name] = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()


serve("hub")
serve("cdn")
print(ports["hub"], ports["cdn"], flush=True)
sys.stdin.read()
os._exit(0)
