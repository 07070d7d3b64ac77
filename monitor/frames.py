"""Which frames of a traceback are a library's: of Python, of an installed package, or of Celery in a bundle. No I/O.

A directory's name alone says nothing: an application may live in ``/srv/celery/app``.
"""

import re

_LIBRARY = re.compile(
    r"/(?:site|dist)-packages/"
    r"|^<frozen "
    r"|/(?:lib|lib64)/(?:python|pypy)\d\.\d+t?/"  # the standard library
    r"|/python\d+\.zip/"
    r"|^[a-z]:/(?:.*/)?python[\d.]*/lib/"  # the standard library on Windows
    r"|\.(?:whl|egg)/"  # a package that is run from its archive, or unpacked beside others (pex)
    r"|\.(?:zip|pyz|pex|par)/(?:.*/)?(?:celery|kombu|billiard|amqp|vine)/",
    re.IGNORECASE,
)


def is_library(path: str) -> bool:
    """Whether the file of a frame is a library's, by its path as a traceback names it."""
    return _LIBRARY.search(path.replace("\\", "/")) is not None
