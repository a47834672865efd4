# SPDX-License-Identifier: Apache-2.0
"""Types of fields with their limits, each said once; light, so that agent, wire and files may all name them."""
