package kubernetes

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// etcdCertificates are the pairs that kubeadm makes for etcd and for who uses it,
// below /etc/kubernetes/pki.
var etcdCertificates = []string{"etcd/ca", "etcd/server", "etcd/peer", "etcd/healthcheck-client", "apiserver-etcd-client"}

// TestKubeadm compares the manifest and the certificates that kubeadm makes for
// a machine with those that muster makes for it.
func TestKubeadm(t *testing.T) {
	if *without["stacked"] {
		t.Skip("left out by -without-stacked")
	}
	for _, algorithm := range []struct{ kubeadms, musters string }{
		{"ECDSA-P256", "ecdsa-p256"},
		{"RSA-2048", "rsa-2048"},
	} {
		t.Run(algorithm.kubeadms, func(t *testing.T) {
			page := readWalkthrough(t, "../kubernetes-stacked/README.md")
			m := startMachines(t, withContainerd, 1)
			inventory := page.file(t, "yaml", "cluster:")
			if i := strings.Index(inventory, "  - name: controlplane-1\n"); i >= 0 {
				inventory = inventory[:i]
			}
			m.write("muster.yaml", fmt.Sprintf("%spki:\n  keyAlgorithm: %s\n", inventory, algorithm.musters), 0o600)
			m.startKubelet(page)
			config := m.kubeadmConfig(page, 0)
			m.write("manifest.yaml", config, 0o600)
			m.write("scratch.yaml", fmt.Sprintf("%scertificatesDir: /root/kubeadm\nencryptionAlgorithm: %s\n", config, algorithm.kubeadms), 0o600)
			m.types(time.Minute, "muster apply --yes")
			m.types(time.Minute, "for file in manifest.yaml scratch.yaml; do ssh controlplane \"cat >$file\" <$file; done")
			m.mustOn("controlplane", `mkdir -p dry-run
				KUBEADM_INIT_DRYRUN_DIR=/root/dry-run kubeadm init phase etcd local --dry-run --config manifest.yaml
				for which in etcd-ca etcd-server etcd-peer etcd-healthcheck-client apiserver-etcd-client; do
					kubeadm init phase certs $which --config scratch.yaml
				done`)
			m.compareManifests()
			for _, certificate := range etcdCertificates {
				m.compareCertificates(certificate, "/root/kubeadm/", "/etc/kubernetes/pki/")
			}
		})
	}
}

// kubeadmConfig is the page's file for kubeadm on one of the machines.
func (m *machines) kubeadmConfig(page walkthrough, i int) string {
	m.t.Helper()
	return strings.NewReplacer("NODE", m.names[i], "ADDRESS", m.address(i)).Replace(page.file(m.t, "yaml", "apiVersion: kubeadm.k8s.io/"))
}

// startKubelet has the kubelet of the only machine run as the page does it.
func (m *machines) startKubelet(page walkthrough) {
	m.t.Helper()
	m.write("kubeadm.yaml", m.kubeadmConfig(page, 0), 0o600)
	m.types(time.Minute, "ssh controlplane 'cat >kubeadm.yaml' <kubeadm.yaml")
	m.mustOn("controlplane", `set -e
		for phase in "certs ca" "certs front-proxy-ca" "certs sa" "certs apiserver" "certs apiserver-kubelet-client" "certs front-proxy-client" "kubeconfig all" "kubelet-start"; do
			kubeadm init phase $phase --config kubeadm.yaml
		done`)
}

// imageChanged is a diff of kubeadm's manifest and muster's.
var imageChanged = regexp.MustCompile(`^--- .*\n\+\+\+ .*\n@@ \S+ \S+ @@\n-    image: registry\.k8s\.io/etcd:\S+\n\+    image: muster\.local/etcd:\S+\n$`)

// compareManifests: the image is all that differs.
func (m *machines) compareManifests() {
	m.t.Helper()
	theirs := m.mustOn("controlplane", "cat dry-run/etcd.yaml")
	ours := m.mustOn("controlplane", "cat /etc/kubernetes/manifests/etcd.yaml")
	m.write("kubeadm.manifest", theirs, 0o600)
	m.write("muster.manifest", ours, 0o600)
	diff := m.types(time.Minute, "diff -U0 kubeadm.manifest muster.manifest || true")
	m.t.Logf("diff of kubeadm's manifest and muster's:\n%s", diff)
	if !imageChanged.MatchString(diff) {
		m.t.Errorf("more than the image differs, or nothing does")
	}
}

// compareCertificates: what openssl prints of two certificates is the same, but
// for what is nobody else's. muster's leaves name their key, as RFC 5280 would
// have it; kubeadm's do not.
func (m *machines) compareCertificates(name, theirs, ours string) {
	m.t.Helper()
	fetch := func(dir string) []byte { return []byte(m.mustOn("controlplane", "cat "+dir+name+".crt")) }
	want, got := printed(m.t, fetch(theirs)), printed(m.t, fetch(ours))
	if !strings.HasSuffix(name, "/ca") {
		got = slices.DeleteFunc(got, func(line string) bool { return strings.Contains(line, "Subject Key Identifier") })
	}
	m.t.Logf("%s\n%s", name, strings.Join(got, "\n"))
	if diff := gocmp.Diff(want, got); diff != "" {
		m.t.Errorf("%s differs (-kubeadm +muster):\n%s", name, diff)
	}
	lifetime := func(dir string) (time.Duration, time.Duration) {
		block, _ := pem.Decode(fetch(dir))
		if block == nil {
			m.t.Fatalf("%s%s.crt holds no certificate", dir, name)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			m.t.Fatal(err)
		}
		// Some seconds are between the two runs, and RFC 5280 has no fractions.
		written := m.mustOn("controlplane", "stat -c %Y "+dir+name+".crt")
		var at int64
		if _, err := fmt.Sscan(written, &at); err != nil {
			m.t.Fatal(err)
		}
		return cert.NotAfter.Sub(cert.NotBefore).Round(time.Minute), time.Unix(at, 0).Sub(cert.NotBefore)
	}
	theirLife, _ := lifetime(theirs)
	ourLife, backdated := lifetime(ours)
	if ourLife != theirLife {
		m.t.Errorf("%s lives for %v, kubeadm's for %v", name, ourLife, theirLife)
	}
	if backdated < 5*time.Minute-time.Second || backdated > 10*time.Minute {
		m.t.Errorf("%s was made %v after its NotBefore, want 5 minutes", name, backdated)
	}
}

var (
	hexLine = regexp.MustCompile(`^\s*(keyid:)?([0-9A-Fa-f]{2}:)+[0-9A-Fa-f]{0,2}$`)
	// unlike is what is different in any two certificates.
	unlike = regexp.MustCompile(`^\s*(Serial Number|Not Before|Not After\s*):`)
)

// printed is what openssl prints of a certificate, without the lines that are
// different in any two. The names are sorted: their order says nothing.
func printed(t *testing.T, cert []byte) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(file, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("openssl", "x509", "-noout", "-text", "-certopt", "no_sigdump", "-in", file).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	var lines []string
	names := false
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, " \n")
		if names {
			all := strings.Split(strings.TrimSpace(line), ", ")
			slices.Sort(all)
			line = strings.Join(all, ", ")
		}
		names = strings.Contains(line, "Subject Alternative Name")
		if !hexLine.MatchString(line) && !unlike.MatchString(line) {
			lines = append(lines, line)
		}
	}
	return lines
}
