"""A stand-in for PyAV (35 MB, video only): ComfyUI imports it everywhere and uses it for video and audio alone."""

import importlib.abc
import importlib.machinery
import sys
import types


class _Nothing(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent


class Absent(metaclass=_Nothing):
    def __init__(self, *args, **kwargs):
        raise RuntimeError("PyAV is not installed here (a stand-in without video)")


class _Stream:
    type, time_base, average_rate, duration, start_time, frames = "video", 1, 0, 0, 0, 0


class _Container:
    """A file without a frame: ComfyUI 0.33's LoadImage then reads it with Pillow, as older versions do."""

    metadata, duration, format = {}, 0, None

    def __init__(self):
        self.streams = types.SimpleNamespace(video=[_Stream()], audio=[])

    def demux(self, *streams):
        return iter(())

    def seek(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None


def open(*args, **kwargs):
    return _Container()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent


class _Loader(importlib.abc.Loader):
    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = __getattr__
        return module

    def exec_module(self, module):
        pass


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith("av."):
            return importlib.machinery.ModuleSpec(name, _Loader(), is_package=True)
        return None


sys.meta_path.append(_Finder())
