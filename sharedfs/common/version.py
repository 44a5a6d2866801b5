"""The version of this package, which both programs tell."""

VERSION = "0.1.0"
