"""What a run is judged by: metrics over answers, and how sure one can be of them.

Runs in: learner ranks; statistics also in reports.
Imports: `scoring`, `ops`, `world.oracle`.
Called by: `jobs`, `report`, `paper`.
"""
