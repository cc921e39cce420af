"""A purifier as a part of other libraries' pipelines. Each module needs its library and is imported by name."""
