# SPDX-License-Identifier: Apache-2.0
"""The edge client: a light agent, and a worker process that trains under the device's memory budget."""
