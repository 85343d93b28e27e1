package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	token = "administrator-of-the-test"
	// compactionInterval is how often the kube-apiserver compacts the store: its
	// default is five minutes.
	compactionInterval = 5 * time.Second
	// eventTTL is how long an event is kept: the default is an hour.
	eventTTL = 20 * time.Second
)

// apiserver is a kube-apiserver on a store.
type apiserver struct {
	*process
	store  *store
	args   []string
	config *rest.Config
	// Ready is the time from its start to /readyz.
	Ready time.Duration
	// broken are the parts of its log from when something was broken on purpose.
	broken []span

	clients    kubernetes.Interface
	dynamic    dynamic.Interface
	discovery  discovery.DiscoveryInterface
	extensions apiextensions.Interface
}

// startAPIServer starts a kube-apiserver on the store and waits until it is
// ready.
func startAPIServer(t *testing.T, s *store) *apiserver {
	t.Helper()
	write := func(name string, content []byte) string {
		path := s.path(name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	issuer := write("issuer.key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	encryption := write("encryption.yaml", fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aescbc:
      keys:
      - name: test
        secret: %s
  - identity: {}
`, base64.StdEncoding.EncodeToString(secret)))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()

	a := &apiserver{store: s, args: append([]string{
		"--event-ttl=" + eventTTL.String(),
		"--etcd-compaction-interval=" + compactionInterval.String(),
		"--encryption-provider-config=" + encryption,
		"--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(port), "--cert-dir=" + s.path("certificates"),
		"--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + issuer, "--service-account-signing-key-file=" + issuer,
		"--token-auth-file=" + write("tokens.csv", []byte(token+",admin,admin,system:masters\n")),
		"--authorization-mode=RBAC",
		// There is no controller manager to make service accounts.
		"--disable-admission-plugins=ServiceAccount",
		"--runtime-config=api/all=true",
		"--goaway-chance=0",
	}, s.flags...)}
	a.config = &rest.Config{
		Host: "https://127.0.0.1:" + strconv.Itoa(port), BearerToken: token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}, Timeout: 2 * time.Minute,
	}
	a.clients = kubernetes.NewForConfigOrDie(a.config)
	a.dynamic = dynamic.NewForConfigOrDie(a.config)
	a.discovery = discovery.NewDiscoveryClientForConfigOrDie(a.config)
	a.extensions = apiextensions.NewForConfigOrDie(a.config)
	a.start(t)
	return a
}

// start starts the process, again after it was stopped.
func (a *apiserver) start(t *testing.T) {
	t.Helper()
	began := time.Now()
	// Not the step's own t, at whose end the process would be stopped.
	a.process = start(a.store.t, exec.Command(filepath.Join(programs, "kube-apiserver"), a.args...), a.store.path("kube-apiserver.log"), syscall.SIGTERM)
	// The interval is how exactly the time is known.
	poll(t, 10*time.Millisecond, 3*time.Minute, "/readyz", func() error {
		select {
		case <-a.ended:
			t.Fatalf("kube-apiserver ended: %v\n%s", a.err, a.tail())
		default:
		}
		answer, err := a.discovery.RESTClient().Get().AbsPath("/readyz").Timeout(5 * time.Second).DoRaw(t.Context())
		if err != nil {
			return fmt.Errorf("%w: %s", err, answer)
		}
		return nil
	})
	a.Ready = time.Since(began)
}

// whileBroken has something broken on purpose: what is logged meanwhile is not
// compared.
func (a *apiserver) whileBroken(t *testing.T, do func()) {
	t.Helper()
	size := func() int64 {
		info, err := os.Stat(a.log)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	from := size()
	do()
	a.broken = append(a.broken, span{from, size()})
}
