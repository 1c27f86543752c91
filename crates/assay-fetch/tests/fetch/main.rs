//! Pulls, downloads and the paths of a gateway, over sockets of this machine.

mod download;
mod gateway;
mod pull;
mod support;
