// Package remote is one SSH connection to one host: running commands there,
// as root, placing files, and dialling what listens there. It verifies host
// keys strictly, honours the user's ssh_config, agent and known_hosts, and
// goes through bastions. What is to be done on a host is none of its business.
package remote
