"""Which engines are there, which graph does each take, and may it be used for a graph on this machine?"""

from gacq_deploy.engines.catalogue import EngineRecord, engine_named, known_engines

__all__ = ["EngineRecord", "engine_named", "known_engines"]
