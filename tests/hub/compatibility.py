"""huggingface_hub and kinora over one cache folder, both ways. Run by hub_cli_test.cpp, which sets HF_ENDPOINT to the test
server, HF_HUB_CACHE and KINORA; FOLDER holds the server's repositories."""
import os
import subprocess
import sys

os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
import huggingface_hub as hub  # noqa: E402

folder, cache, kinora = sys.argv[1], os.environ["HF_HUB_CACHE"], os.environ["KINORA"]
needed = ["*.json", "*.safetensors"]


def run(*arguments, **environment):
    result = subprocess.run([kinora, *arguments], capture_output=True, text=True, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def scan(root, revisions):
    found = hub.scan_cache_dir(root)
    assert not found.warnings, found.warnings
    assert not getattr(found, "incomplete_files", None), found.incomplete_files
    assert sum(len(repo.revisions) for repo in found.repos) == revisions, found.repos
    return found


def listing(root):
    """Every path below with what it is: a link's target, a file's bytes."""
    entries = {}
    for base, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(base, name)
            if os.path.islink(path):
                entries[os.path.relpath(path, root)] = "-> " + os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    entries[os.path.relpath(path, root)] = file.read()
            else:
                entries[os.path.relpath(path, root)] = "folder"
    return entries


# What kinora fetched is complete for huggingface_hub, without the network.
snapshot = run("pull", "org/model")
scan(cache, 1)
assert hub.snapshot_download("org/model", allow_patterns=needed, local_files_only=True) == snapshot
path = hub.hf_hub_download("org/model", "transformer/diffusion_pytorch_model.safetensors", local_files_only=True)
assert path == os.path.join(snapshot, "transformer/diffusion_pytorch_model.safetensors")
run("pull", "org/model", "README.md")
assert os.path.samefile(hub.try_to_load_from_cache("org/model", "README.md"), os.path.join(snapshot, "README.md"))
assert subprocess.run([kinora, "pull", "org/model", "nowhere.json"], capture_output=True).returncode == 3
assert hub.try_to_load_from_cache("org/model", "nowhere.json") is hub._CACHED_NO_EXIST

# What huggingface_hub fetched is complete for kinora, without the network.
theirs = hub.snapshot_download("org/tiny")
assert run("pull", "org/tiny", HF_HUB_OFFLINE="1") == theirs
picture = os.path.join(folder, "picture.png")
run("generate", "cat", "--steps", "1", "--model", "org/tiny", "-o", picture, HF_HUB_OFFLINE="1")
assert os.path.getsize(picture) > 0
run("models", "verify")
scan(cache, 2)

# The same download by each leaves the same folder, byte for byte.
ours, other = os.path.join(folder, "ours"), os.path.join(folder, "theirs")
run("pull", "org/tiny", "*", HF_HUB_CACHE=ours)
hub.snapshot_download("org/tiny", cache_dir=other)
a, b = listing(ours), listing(other)
assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
assert a == b, [path for path in a if a[path] != b[path]]

# Each removes what the other made.
hub.scan_cache_dir(ours).delete_revisions(*[r.commit_hash for repo in scan(ours, 1).repos for r in repo.revisions]).execute()
assert run("models", "--json", HF_HUB_CACHE=ours).count('"commit"') == 1  # the one that came with the program
run("models", "rm", "org/tiny", "--yes", HF_HUB_CACHE=other)
scan(other, 0)
print("huggingface_hub", hub.__version__, "agrees")
