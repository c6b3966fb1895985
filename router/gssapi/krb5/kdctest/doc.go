// Package kdctest runs a Kerberos realm for tests: MIT's krb5kdc with a database of its
// own, in a directory of its own, that ends with the test.
//
// Start at [Start]. [KDC.Add] makes principals, [KDC.Keytab] and [KDC.Login] what servers
// and clients have of them. Nothing outside of the directory is read or changed.
package kdctest
