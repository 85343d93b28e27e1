package inventory

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

const storesOfOneKubernetes = `cluster: prod
controllers: [10.0.0.10, 10.0.0.11, 10.0.0.12]
kubernetes: {apiservers: [10.0.0.10, 10.0.0.20]}
---
cluster: events
controllers: [{name: events-0, address: 10.0.0.30}]
pki: {dir: prod-pki}
kubernetes: {resources: [events]}
`

func loadTogether(t *testing.T, text string) ([]*Cluster, error) {
	t.Helper()
	clusters, _, err := LoadAll("a.yaml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return clusters, Together(clusters)
}

func TestTogether(t *testing.T) {
	clusters, err := loadTogether(t, storesOfOneKubernetes)
	if err != nil {
		t.Fatal(err)
	}
	prod, events := clusters[0], clusters[1]
	if !slices.Equal(prod.Siblings(), []*Cluster{events}) || !slices.Equal(events.Siblings(), []*Cluster{prod}) {
		t.Errorf("siblings %v and %v", prod.Siblings(), events.Siblings())
	}
	if len(events.APIServers()) != 0 || len(events.Callers()) != 2 || events.Callers()[1].Address != "10.0.0.20" {
		t.Errorf("%v are called by %v, and given files on %v", events.Name, events.Callers(), events.APIServers())
	}
	stacked, err := loadTogether(t, strings.Replace(storesOfOneKubernetes, "kubernetes: {apiservers: [10.0.0.10, 10.0.0.20]}", "topology: stacked", 1))
	if err != nil || len(stacked[1].Callers()) != 3 || stacked[1].Callers()[2].Address != "10.0.0.12" {
		t.Errorf("the callers of a stacked cluster's sibling are %v, error %v", stacked[1].Callers(), err)
	}
	apart := strings.Replace(storesOfOneKubernetes, "controllers: [{name: events-0, address: 10.0.0.30}]",
		"instance: events\nserver: {clientPort: 3379, peerPort: 3380, metricsPort: 3381}\ncontrollers: [{name: events-0, address: 10.0.0.12}]", 1)
	if both, err := loadTogether(t, apart); err != nil || both[1].Hosts[0].Server.DataDir != "/var/lib/muster-events" {
		t.Errorf("two clusters on one machine: %v", err)
	}
	for name, c := range map[string]struct{ old, text, want string }{
		"no resources": {"kubernetes: {resources: [events]}\n", "",
			"a.yaml:7:12: pki.dir: $DIR/prod-pki holds the certificates of cluster prod (a.yaml:1) as well; give every cluster a pki.dir of its own, or say "},
		"a name twice": {"{name: events-0, address: 10.0.0.30}", "10.0.0.30",
			`a.yaml:6:15: controllers[0].name: "controller-0" is the name of a controller, with certificates in the same directory, of cluster prod (a.yaml:1) as well; write another one, such as name: events-0`},
		"other certificates": {"pki: {dir: prod-pki}", "pki: {dir: prod-pki, leafLifetime: 90d}",
			"a.yaml:7:6: pki: the certificates are to be made otherwise than those in the same directory, of cluster prod (a.yaml:1) as well; write the same"},
		"a machine twice": {"10.0.0.30", "10.0.0.12",
			`a.yaml:6:41: controllers[0].address: "10.0.0.12" is a controller of cluster prod (a.yaml:1) as well; write another machine`},
		"a machine twice, and a port": {"controllers: [{name: events-0, address: 10.0.0.30}]", "instance: events\ncontrollers: [{name: events-0, address: 10.0.0.12, server: {clientPort: 3379, peerPort: 3380}}]",
			`a.yaml:7:15: controllers[0]: port 2381 of "10.0.0.12" is one of cluster prod (a.yaml:1) as well; write other ports under server`},
		"a machine and a directory twice": {"controllers: [{name: events-0, address: 10.0.0.30}]", "instance: events\nserver: {clientPort: 3379, peerPort: 3380, metricsPort: 3381, dataDir: /var/lib/muster}\ncontrollers: [{name: events-0, address: 10.0.0.12}]",
			`a.yaml:8:15: controllers[0]: the directory /var/lib/muster of "10.0.0.12" is that of cluster prod (a.yaml:1) as well; write another server.dataDir`},
		"a kube-apiserver twice": {"resources: [events]", "resources: [events], apiservers: [10.0.0.20]",
			`a.yaml:8:48: kubernetes.apiservers[0].address: "10.0.0.20" has the certificates of cluster prod (a.yaml:1) as well; list it with one`},
		"a resource twice": {"resources: [events]}\n", "resources: [events]}\n---\ncluster: more\ncontrollers: [{name: more-0, address: 10.0.0.40}]\npki: {dir: prod-pki}\nkubernetes: {resources: [coordination.k8s.io/leases, events]}\n",
			"a.yaml:13:54: kubernetes.resources[1]: events is a resource of cluster events (a.yaml:5) as well; remove one of the two"},
		"two for the rest": {"resources: [events]}\n", "resources: [events]}\n---\ncluster: more\ncontrollers: [{name: more-0, address: 10.0.0.40}]\npki: {dir: prod-pki}\n",
			"a.yaml:12:12: pki.dir: $DIR/prod-pki holds the certificates of cluster prod (a.yaml:1) as well"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadTogether(t, strings.Replace(storesOfOneKubernetes, c.old, c.text, 1))
			var problems Problems
			if !errors.As(err, &problems) || len(problems) != 1 {
				t.Fatalf("error %v, want one problem", err)
			}
			if got := strings.ReplaceAll(problems[0].String(), prod.Dir(), "$DIR"); !strings.HasPrefix(got, c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	// In two files nobody says that it is meant.
	other, _, err := LoadAll("b.yaml", strings.NewReader("cluster: events\ncontrollers: [{name: events-0, address: 10.0.0.30}]\npki: {dir: prod-pki}\nkubernetes: {resources: [events]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Together([]*Cluster{prod, other[0]}); err == nil || !strings.Contains(err.Error(), "or say in one file") {
		t.Errorf("error %v, want one about the directory", err)
	}
}
