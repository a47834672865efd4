# SPDX-License-Identifier: Apache-2.0
"""Stores that published objects also lie in, for nodes to fetch them by HTTP: S3, or a folder that a web server
serves."""
