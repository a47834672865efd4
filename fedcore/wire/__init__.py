# SPDX-License-Identifier: Apache-2.0
"""What crosses the wire: messages, their encoding, and transfers of large objects in chunks."""
