package found

import (
	"maps"
	"slices"
	"strings"

	"muster/provision/inventory"
)

// idle are flags that mean nothing to a server of today, or only while a
// cluster is founded.
var idle = []string{
	"enable-v2", "experimental-enable-v2v3", "proxy", "proxy-failure-wait", "proxy-refresh-interval", "proxy-dial-timeout",
	"proxy-write-timeout", "proxy-read-timeout", "strict-reconfig-check", "debug", "log-package-levels", "logger", "log-output",
	"discovery-fallback", "discovery-proxy", "unsupported-arch", "initial-election-tick-advance",
}

// Carried are the flags that go on to the new members: those that muster does
// not decide. Left are the others, by name, with their reason.
func (e *Etcd) Carried() (carried, left map[string]string) {
	carried, left = map[string]string{}, map[string]string{}
	for name, value := range e.Flags {
		switch owner := inventory.FieldOfFlag(name); {
		case owner != "":
			// The inventory says it.
		case slices.Contains(idle, name):
			left[name] = "it has no use any more"
		case strings.HasPrefix(name, "ctl-"):
			left[name] = "it is etcdctl's"
		default:
			carried[name] = value
		}
	}
	return carried, left
}

// Shared are the flags that all have with the same value, and for each of them
// what it has beyond that.
func Shared(each []map[string]string) (shared map[string]string, own []map[string]string) {
	shared = maps.Clone(each[0])
	for _, flags := range each[1:] {
		maps.DeleteFunc(shared, func(name, value string) bool {
			other, ok := flags[name]
			return !ok || other != value
		})
	}
	own = make([]map[string]string, len(each))
	for i, flags := range each {
		own[i] = maps.Clone(flags)
		maps.DeleteFunc(own[i], func(name, _ string) bool {
			_, ok := shared[name]
			return ok
		})
	}
	return shared, own
}
