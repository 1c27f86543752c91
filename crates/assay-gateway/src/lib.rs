//! HTTP gateway: routing, failover, keys, receipt log.
