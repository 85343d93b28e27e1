package found

import (
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
)

const member = `ETCD_NAME=etcd1
ETCD_DATA_DIR=/srv/etcd
ETCD_ADVERTISE_CLIENT_URLS=https://10.0.0.1:2379
ETCD_LISTEN_CLIENT_URLS=https://10.0.0.1:2379,https://127.0.0.1:2379
ETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.0.0.1:12380
ETCD_LISTEN_METRICS_URLS=http://127.0.0.1:2381
ETCD_TRUSTED_CA_FILE=/etc/ssl/etcd/ssl/ca.pem
ETCD_CERT_FILE=/etc/ssl/etcd/ssl/member-node1.pem
ETCD_KEY_FILE=/etc/ssl/etcd/ssl/member-node1-key.pem
# a comment
ETCD_PROXY=off
ETCD_HEARTBEAT_INTERVAL="250"
ETCDCTL_ENDPOINTS=https://127.0.0.1:2379
`

func unitOf(env string) string {
	return "[Service]\nType=notify\nEnvironmentFile=" + env + "\nExecStart=/usr/local/bin/etcd --election-timeout 5000 --pre-vote\n"
}

func TestReadUnits(t *testing.T) {
	for env, installer := range map[string]Installer{etcdadmEnv: Etcdadm, kubesprayEnv: Kubespray} {
		e, err := Read(map[string]string{UnitPath: unitOf("-" + env), env: member}, "active")
		if err != nil {
			t.Fatal(err)
		}
		if e.Installer != installer || e.Source != env || !e.Active || e.Program != "/usr/local/bin/etcd" || e.Name() != "etcd1" || e.DataDir() != "/srv/etcd" {
			t.Errorf("%+v", e)
		}
		if e.Address() != "10.0.0.1" || e.ClientPort() != 2379 || e.PeerPort() != 12380 || e.MetricsPort() != 2381 {
			t.Errorf("address %s, ports %d %d %d", e.Address(), e.ClientPort(), e.PeerPort(), e.MetricsPort())
		}
		carried, left := e.Carried()
		want := map[string]string{"heartbeat-interval": "250", "election-timeout": "5000", "pre-vote": "true"}
		if !maps.Equal(carried, want) || left["proxy"] == "" || len(left) != 1 {
			t.Errorf("carried %v, left %v", carried, left)
		}
		if pairs := e.Clients(); pairs[2] != (Pair{"/etc/ssl/etcd/ssl/admin-node1.pem", "/etc/ssl/etcd/ssl/admin-node1-key.pem"}) {
			t.Errorf("%v", pairs)
		}
	}
}

// The manifest is what kubeadm wrote on a control-plane node.
func TestReadManifest(t *testing.T) {
	text, err := os.ReadFile("testdata/kubeadm-etcd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	e, err := Read(map[string]string{ManifestPath: string(text)}, "inactive")
	if err != nil {
		t.Fatal(err)
	}
	if e.Installer != Kubeadm || e.Name() != "controller-0" || e.PeerURL() != "https://192.0.2.10:2380" || e.CA() != "/etc/kubernetes/pki/etcd/ca.crt" || e.PeerCA() != e.CA() {
		t.Errorf("%+v", e)
	}
	carried, _ := e.Carried()
	want := map[string]string{"feature-gates": "InitialCorruptCheck=true", "snapshot-count": "10000", "watch-progress-notify-interval": "5s"}
	if !maps.Equal(carried, want) {
		t.Errorf("carried %v", carried)
	}
}

func TestReadRefuses(t *testing.T) {
	if _, err := Read(nil, ""); !errors.Is(err, ErrNothing) {
		t.Errorf("nothing there: %v", err)
	}
	for want, files := range map[string]map[string]string{
		"both run an etcd":                    {ManifestPath: "kind: Pod", UnitPath: unitOf(etcdadmEnv)},
		"written by none of":                  {UnitPath: unitOf("/etc/default/etcd")},
		"does not exist":                      {UnitPath: unitOf(etcdadmEnv)},
		"only members that use TLS":           {UnitPath: unitOf(etcdadmEnv), etcdadmEnv: strings.ReplaceAll(member, "https:", "http:")},
		"does not set advertise-client-urls":  {UnitPath: unitOf(etcdadmEnv), etcdadmEnv: ""},
		"ask their clients for certificates":  {UnitPath: unitOf(etcdadmEnv), etcdadmEnv: strings.ReplaceAll(member, "ETCD_CERT_FILE", "X")},
		"no container that runs etcd":         {ManifestPath: "kind: Pod"},
		"read /etc/kubernetes/manifests/etcd": {ManifestPath: "\t"},
		"keep the host's paths": {ManifestPath: "spec:\n  containers:\n  - command: [etcd]\n    volumeMounts: [{name: d, mountPath: /data}]\n" +
			"  volumes: [{name: d, hostPath: {path: /var/lib/etcd}}]\n"},
	} {
		if _, err := Read(files, "active"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestShared(t *testing.T) {
	shared, own := Shared([]map[string]string{{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}})
	if !maps.Equal(shared, map[string]string{"a": "1"}) || !maps.Equal(own[0], map[string]string{"b": "2"}) || !maps.Equal(own[1], map[string]string{"b": "3", "c": "4"}) {
		t.Errorf("%v %v", shared, own)
	}
}
