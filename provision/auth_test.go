package provision

import (
	"errors"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"muster/pki"
	"muster/provision/member"
	"muster/provision/snapshot"
	"muster/provision/step"
)

// With auth on, muster's own certificate is a user like any other. Whoever runs it
// is told what that user lacks, and when it has that, everything works.
func TestAuthIsOn(t *testing.T) {
	l := newLab(t, 1)
	l.mustApply()
	all := func(steps ...func() error) {
		t.Helper()
		for i, step := range steps {
			if err := step(); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
		}
	}
	client := l.client(0)
	all(
		func() error { _, err := client.UserAdd(l.context(), "root", "secret"); return err },
		func() error { _, err := client.UserGrantRole(l.context(), "root", "root"); return err },
		func() error { _, err := client.AuthEnable(l.context()); return err },
	)
	place := snapshot.Place{Dir: l.dir, File: "s.db"}
	_, applied := l.apply()
	_, saved := l.backup(place)
	for _, err := range []error{applied, saved} {
		var failure *Failure
		if !errors.As(err, &failure) || !strings.Contains(failure.Error(), "permission denied") || !strings.HasPrefix(failure.Hint(), "auth is on, and muster's certificate is the user kube-etcd-healthcheck-client; ") {
			t.Errorf("error %v", err)
		}
	}

	ca, pair, err := pki.OpenClient(l.cluster.PKI.Dir)
	if err != nil {
		t.Fatal(err)
	}
	config, err := member.TLS(ca, pair)
	if err != nil {
		t.Fatal(err)
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: client.Endpoints(), TLS: config, Username: "root", Password: "secret", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	all(
		func() error {
			_, err := root.UserAddWithOptions(l.context(), pki.HealthcheckUser, "", &clientv3.UserAddOptions{NoPassword: true})
			return err
		},
		func() error { _, err := root.UserGrantRole(l.context(), pki.HealthcheckUser, "root"); return err },
	)
	if again := l.mustApply(); again.Changes != 0 {
		t.Errorf("changes: %q", l.events.texts(step.Changed))
	}
	l.put(0, "k1", "old")
	place.File = "granted.db"
	snapshot := l.mustBackup(place)
	l.put(0, "k1", "new")
	l.mustRestore(snapshot.Path, agree)
	if keys := l.keys(0); keys["k1"] != "old" {
		t.Errorf("restored %v", keys)
	}
}
