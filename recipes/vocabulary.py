"""The names that a recipe may use, asked of the packages that own them, so that a plug-in's names are known
here too.

Each question imports its package when it is asked: `sordino --help` needs none of them.
"""

from __future__ import annotations


def protocols() -> list[str]:
    """Protocols of the secure engine, plug-ins among them."""
    from secure_eval import protocols as registry

    return list(registry.names())


def networks() -> list[str]:
    """Network profiles that ship with the cost model."""
    import cost_models

    return list(cost_models.profile_names("networks"))


def devices() -> list[str]:
    """Device profiles that ship with the cost model, and "auto" for this machine's own."""
    import cost_models

    return [cost_models.AUTO, *cost_models.profile_names("devices")]


def kinds() -> list[str]:
    """Kinds of site at which a variant may stand."""
    from distill import variants as registry

    return list(registry.kinds())


def variants(kind: str) -> list[str]:
    """Variants of a kind of site, "exact" first."""
    from distill import variants as registry

    return list(registry.names(kind))
