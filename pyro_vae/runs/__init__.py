"""Run folders: a configuration, its objects, and the files of a run."""
