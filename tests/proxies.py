"""nginx and Caddy of our own, with the files of deploy/ or with others, on free ports."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import free_port, needs_program, wait_for_port
from tests.workers import ROOT

DEPLOY = ROOT / "deploy"
UPSTREAM = "127.0.0.1:5555"  # in the files of deploy/
NGINX = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""
CADDY = """
{{
    admin off
    auto_https off
    storage file_system {folder}/caddy
}}
{site}
"""


@contextmanager
def nginx(site: str, target: str, directory: Path, port: int = 0) -> Iterator[int]:
    """The port of nginx with this configuration, in front of the dashboard at the address ``target``."""
    port = port or free_port()
    text = site.replace("listen 80;", f"listen 127.0.0.1:{port};").replace(UPSTREAM, urlsplit(target).netloc)
    file = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    file.write_text(NGINX.format(folder=directory, site=text, user=user), encoding="utf-8")
    command = [needs_program("nginx"), "-p", str(directory), "-c", str(file)]
    with _running(command, port, directory):
        yield port


@contextmanager
def caddy(site: str, target: str, directory: Path) -> Iterator[int]:
    """The same with Caddy, without TLS."""
    port = free_port()
    for name in ("monitor.example.com", "www.example.com"):
        site = site.replace(f"\n{name} {{", f"\nhttp://{name}:{port} {{")
    text = CADDY.format(folder=directory, site=site.replace(UPSTREAM, urlsplit(target).netloc))
    file = directory / "Caddyfile"
    file.write_text(text, encoding="utf-8")
    with _running([needs_program("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"], port, directory):
        yield port


@contextmanager
def _running(command: Sequence[str], port: int, directory: Path) -> Iterator[None]:
    environ = os.environ | {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    with (directory / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ)
    try:
        wait_for_port(port)
        yield
    finally:
        process.terminate()
        process.wait(60)
