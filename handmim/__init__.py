"""handmim: from unlabeled photos of hands to 3D hand mesh estimators."""

__version__ = "0.1.0"
