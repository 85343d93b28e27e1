package plan

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/observed"
)

func wantedPod(t *testing.T) desired.Host {
	t.Helper()
	cluster, _, err := inventory.Load("inventory.yaml", strings.NewReader("cluster: prod\ntopology: stacked\ncontrollers: [10.0.0.1]\n"))
	if err != nil {
		t.Fatal(err)
	}
	bundle, _, err := pki.Ensure(t.Context(), t.TempDir()+"/pki", desired.Certificates(cluster))
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := desired.ForMembers(cluster, bundle, desired.Known{Images: map[string]string{"controller-0": "muster.local/etcd:new"}})
	if err != nil {
		t.Fatal(err)
	}
	return hosts[0]
}

func TestComparePods(t *testing.T) {
	want := wantedPod(t)
	unit := want.Units[0]
	contents := maps.Clone(programs)
	contents["/var/lib/muster/etcd-image.tar"] = Content{SHA256: "ee", Size: 20 << 20}
	own := record
	own.DataDir = "/var/lib/etcd"
	for _, test := range []struct {
		name   string
		change func(*desired.Host, *observed.Facts)
		plan   []string
	}{
		{"nothing", func(*desired.Host, *observed.Facts) {}, nil},
		{"a directory of Kubernetes' with another mode", func(_ *desired.Host, f *observed.Facts) {
			f.Files["/etc/kubernetes/pki"] = observed.FileFact{Type: "directory", Mode: 0o700, Owner: "root", Group: "root"}
		}, nil},
		{"another image", func(_ *desired.Host, f *observed.Facts) { f.Images = []string{"muster.local/etcd:old"} },
			[]string{"create image muster.local/etcd:new", "remove image muster.local/etcd:old"}},
		{"a manifest of somebody else's", func(_ *desired.Host, f *observed.Facts) {
			f.Unit.NeedsReload, f.RestartPending = true, true
			f.Files[unit.Manifest] = observed.FileFact{Text: strings.NewReplacer("muster.local/etcd:new", "registry.k8s.io/etcd:3.6.8-0", "--snapshot-count=10000", "--snapshot-count=9").Replace(f.Files[unit.Path].Text)}
		}, []string{"restart service etcd (the kubelet runs another manifest than muster's; --snapshot-count: 9 -> 10000; spec.containers.0.image: registry.k8s.io/etcd:3.6.8-0 -> muster.local/etcd:new)"}},
		{"a manifest that is away", func(_ *desired.Host, f *observed.Facts) { f.Unit.Active = "inactive" },
			[]string{"start service etcd (by /etc/kubernetes/manifests/etcd.yaml)"}},
		{"a certificate that kubeadm has renewed", func(w *desired.Host, f *observed.Facts) {
			for i, file := range w.Files {
				if strings.Contains(file.Path, "/etcd/server.") {
					w.Files[i].Kept = true
					f.Files[file.Path] = observed.FileFact{Mode: file.Mode, Owner: "root", Group: "root", SHA256: "another"}
				}
			}
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := want
			want.Files = slices.Clone(want.Files)
			have := has(want)
			have.Images, have.Record = []string{want.Image}, own
			have.Record.ClusterID, have.Record.MemberID = "c1", "m1"
			have.Files["/var/lib/muster/etcd-image.tar"] = observed.FileFact{Mode: 0o644, Owner: "root", Group: "root", SHA256: "ee"}
			test.change(&want, &have)
			var got []string
			for _, c := range (Host{Want: want, Have: have, Programs: contents, Record: own}).Compare() {
				got = append(got, c.sentence())
			}
			if !slices.Equal(got, test.plan) {
				t.Errorf("plan\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.plan, "\n"))
			}
		})
	}
}

// A static pod that founds a cluster does not say so.
func TestBootstrapOfAPod(t *testing.T) {
	want := wantedPod(t)
	for _, f := range want.Files {
		if f.Path != want.Units[0].Path {
			continue
		}
		if b, ok := BootstrapOf(string(f.Content)); !ok || b.State != "new" || b.InitialCluster != "controller-0=https://10.0.0.1:2380" {
			t.Errorf("%+v, %t", b, ok)
		}
		joined := strings.Replace(string(f.Content), "    - --name=", "    - --initial-cluster-state=existing\n    - --name=", 1)
		if b, ok := BootstrapOf(joined); !ok || b.State != "existing" {
			t.Errorf("%+v, %t", b, ok)
		}
	}
}
