# SPDX-License-Identifier: Apache-2.0
"""The commands of the client: what was typed becomes a call, what comes back becomes lines."""
