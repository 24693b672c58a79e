"""rpa_ray: how well defences keep an aligned language model safe while it learns from harm.

Reading order: ``plugin`` (the extension contract), ``types`` (records between modules), ``loop``
(the only training loop), ``learner`` (one step), ``jobs.experiment`` (what a run does).
"""

__version__ = "0.1.0"
