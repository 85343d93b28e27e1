package kubernetes

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// outcome is what a run leaves behind, to compare.
type outcome struct {
	ready  float64 // seconds to /readyz
	keys   []string
	errors map[string]int
}

// TestAPIServer puts a kube-apiserver on musterd and another one on etcd, both
// installed by muster, has both do the same, and compares what is left in the
// stores and in the logs.
func TestAPIServer(t *testing.T) {
	outcomes := map[string]outcome{}
	for _, name := range []string{"etcd", "musterd"} {
		t.Run(name, func(t *testing.T) {
			s := startStore(t, name)
			a := startAPIServer(t, s)
			t.Logf("/readyz after %.2fs", a.Ready.Seconds())
			o := outcome{ready: a.Ready.Seconds()}
			for _, step := range []struct {
				name string
				run  func(*testing.T, *apiserver)
			}{
				{"every built-in kind", everyKind},
				{"custom resources", customResources},
				{"conflicts", conflicts},
				{"server-side apply", serverSideApply},
				{"encryption at rest", encryptionAtRest},
				{"events", makeEvents},
				{"leader election", leaderElection},
				{"pages", pages},
				{"watch", watchAndResume},
				{"compaction", compaction},
				{"events have ended", eventsEnd},
				{"load", func(t *testing.T, a *apiserver) { a.whileBroken(t, func() { load(t, a) }) }},
				{"restart", restartOfTheAPIServer},
			} {
				if !t.Run(step.name, func(t *testing.T) { step.run(t, a) }) {
					t.Fatalf("%s failed; kube-apiserver says:\n%s", step.name, a.tail())
				}
			}
			o.keys = steady(s.keys())
			a.whileBroken(t, a.stop)
			o.errors = logErrors(t, a.log, a.broken)
			outcomes[name] = o
		})
	}
	if t.Failed() {
		return
	}
	theirs, ours := outcomes["etcd"], outcomes["musterd"]
	t.Logf("/readyz: etcd %.2fs, musterd %.2fs, ratio %.2f", theirs.ready, ours.ready, theirs.ready/ours.ready)
	t.Logf("%d keys", len(ours.keys))
	if diff := gocmp.Diff(theirs.keys, ours.keys); diff != "" {
		t.Errorf("the keys differ (-etcd +musterd):\n%s", diff)
	}
	for _, message := range slices.Sorted(maps.Keys(ours.errors)) {
		if theirs.errors[message] == 0 && !apart.MatchString(message) {
			t.Errorf("logged %d times with musterd, and never with etcd: %s", ours.errors[message], message)
		}
	}
}

// apart is what a kube-apiserver logs whichever the store is, now and then: the
// controllers of its own lease and of the configmap about old tokens do not wait
// for the one that makes the namespace, and try again (of 25 starts on a new store
// each, 18 and 13 on etcd, 17 and 16 on musterd); the one that looks after the
// addresses of services hears of its own service before it hears of the address.
var apart = regexp.MustCompile(`"(Failed to ensure lease exists, will retry|Error while syncing ConfigMap)" err="namespaces \\"kube-system\\" not found"` +
	`|the ClusterIP .* for Service default/kubernetes is not allocated; repairing`)

// What kube-apiserver makes up has another name each time.
var madeUp = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`^(/registry/leases/kube-system/apiserver-).*`), "${1}ID"},
	{regexp.MustCompile(`^(/registry/ipaddresses/).*`), "${1}IP"},
	{regexp.MustCompile(`^(/registry/events/.*)\..*`), "${1}.ID"},
	{regexp.MustCompile(`^(/registry/masterleases/).*`), "${1}IP"},
}

// steady gives the keys names that are the same in every run.
func steady(keys []string) []string {
	named := []string{}
	for _, key := range keys {
		for _, m := range madeUp {
			key = m.pattern.ReplaceAllString(key, m.name)
		}
		if strings.HasPrefix(key, "/registry/") {
			named = append(named, key)
		}
	}
	slices.SortFunc(named, cmp.Compare)
	return named
}
